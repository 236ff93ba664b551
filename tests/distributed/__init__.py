"""Tests in several real processes."""
