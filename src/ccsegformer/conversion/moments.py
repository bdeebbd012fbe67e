"""Means and covariances of many rows, and ridge regression from them, in bounded memory."""

import torch
from torch import Tensor


class Moments:
    """Running first and second moments of rows, in float64.

    Args:
        columns: Number of columns.
        device: Where they are added up.
    """

    def __init__(self, columns: int, device: torch.device) -> None:
        self.count = 0
        self.sum = torch.zeros(columns, dtype=torch.float64, device=device)
        self.squares = torch.zeros(columns, columns, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows (N, columns)."""
        rows = rows.double()
        self.count += len(rows)
        self.sum += rows.sum(dim=0)
        self.squares.addmm_(rows.T, rows)

    @property
    def mean(self) -> Tensor:
        """Mean of each column."""
        return self.sum / self.count

    def covariance(self) -> Tensor:
        """Return the covariance (columns, columns)."""
        return self.squares / self.count - torch.outer(self.mean, self.mean)


def solve_ridge(gram: Tensor, cross: Tensor, penalty: float) -> Tensor:
    """Solve gram x = cross with a penalty on x, as a share of the mean of the Gram matrix's diagonal."""
    return torch.linalg.solve(penalised(gram, penalty), cross)


def penalised(gram: Tensor, penalty: float) -> Tensor:
    """Add to the diagonal `penalty` times its mean, and so much that the matrix can be inverted."""
    diagonal = gram.diagonal()
    return gram + torch.diag(torch.full_like(diagonal, max(penalty * float(diagonal.mean()), 1e-12)))
