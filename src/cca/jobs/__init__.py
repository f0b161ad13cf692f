"""What each stage does to a run folder: read config and artifacts, call the stage, write what came of it."""
