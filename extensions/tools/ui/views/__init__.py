"""One module per page: functions of a request. They read runs through
`toolkit.train.run_reader` alone."""
