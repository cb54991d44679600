"""Object stores: one interface, one backend for each kind of store, one retry loop."""
