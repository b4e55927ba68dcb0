"""What makes a class a frozen tree. See README.md in this folder."""
