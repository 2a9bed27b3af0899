"""What a run leaves behind: the result, the files of the workdir, the words on the screen."""
