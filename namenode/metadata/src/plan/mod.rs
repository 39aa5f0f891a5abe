//! Planners: what should be done, decided without doing it.
