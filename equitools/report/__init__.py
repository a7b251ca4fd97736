"""What equi-report says: one file a report."""
