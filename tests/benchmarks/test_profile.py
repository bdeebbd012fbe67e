"""The profile assigns every node to a family."""

import pytest

from benchmarks.profile import family_of_node


@pytest.mark.parametrize(
    ("kind", "made_of", "family"),
    [
        ("Subgraph", "Multiply_1,Softmax_2,scaled_dot_product_attention/x", "attention"),
        ("Subgraph", "add_1/aten.add.Tensor/Add", "others"),
        ("MatMul", "", "attention"),
        ("FullyConnected", "", "matrix products"),
        ("Reorder", "", "copies"),
        ("MVN", "", "others"),
    ],
)
def test_nodes_have_a_family(kind: str, made_of: str, family: str) -> None:
    assert family_of_node(kind, made_of) == family
