"""What commands that classify share: the images they are given, and how answers are shown and stored."""
