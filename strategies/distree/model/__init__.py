"""Teacher, students and classifier: how the teacher is divided, and what is stored."""
