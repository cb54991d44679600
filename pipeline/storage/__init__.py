"""Object stores: one interface (`Store`), one backend per kind of store, one retry loop."""
