"""What criss-cross attention buys at equal cost."""
