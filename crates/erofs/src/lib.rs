//! castor-erofs
