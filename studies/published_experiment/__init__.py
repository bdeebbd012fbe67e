"""How each difference between the report's code and its text changes mIoU."""
