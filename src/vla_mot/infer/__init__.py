"""Running a policy: observation in, actions out, with torch alone."""
