//! castor-dockerfile
