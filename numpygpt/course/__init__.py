"""A course on GPT-2: the assignment, its grader and what a student begins with."""
