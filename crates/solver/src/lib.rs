//! castor-solver
