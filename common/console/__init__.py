"""Shared by the commands that classify: their images, and how they show and store answers."""
