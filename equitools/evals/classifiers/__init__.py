"""Classifiers of features, and how they are trained and chosen."""
