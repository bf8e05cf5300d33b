"""The dashboard: reads study files, serves pages. Needs neither torch nor `pipeline`."""
