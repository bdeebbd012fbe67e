"""What each difference between the report's code and its text did to mIoU."""
