"""Tables that the ``datasets`` library opens, and the handlers that make rows of tokens of them."""




