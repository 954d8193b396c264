"""Figures and tables that some recipes make of their own records, one file for each of these recipes."""
