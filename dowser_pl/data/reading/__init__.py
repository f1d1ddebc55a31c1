"""Rows of files, whatever their format: JSON, CSV, Parquet, folders of `save_to_disk` and data sets of the hub."""
