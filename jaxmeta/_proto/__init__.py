"""Generated protocol buffer modules; see `protos/README.md` before you edit them."""
