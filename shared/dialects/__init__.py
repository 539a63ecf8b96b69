"""One module per client dialect: parse a body into a contract, format a result, shape an error."""
