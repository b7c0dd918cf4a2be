//! castor-task
