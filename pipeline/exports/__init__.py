"""The forms of `fcnseg export`, a module each."""
