//! Records in the database.
