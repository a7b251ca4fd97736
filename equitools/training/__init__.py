"""One recipe → one trained encoder; knows no evaluation."""
