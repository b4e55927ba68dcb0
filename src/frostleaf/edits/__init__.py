"""The edits: functions from a tree to a tree that shares what was not touched. One file for each kind."""
