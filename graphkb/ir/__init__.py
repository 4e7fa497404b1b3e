"""The intermediate representation: types, dims, ops, interned nodes, graphs and their text form."""
