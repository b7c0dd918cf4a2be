//! castor-estargz
