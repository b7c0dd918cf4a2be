//! castor-llb
