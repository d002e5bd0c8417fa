"""Teacher and students: how the teacher is partitioned, which student a device trains, and what is stored."""
