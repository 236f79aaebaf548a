"""Tables, data files and the HTML page of an evaluation."""
