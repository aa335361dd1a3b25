"""Tests of the task of language models."""
