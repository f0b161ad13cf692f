"""What people look at: a run in the terminal, in its report and in a notebook. Reads run folders and typed results."""
