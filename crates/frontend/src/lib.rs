//! castor-frontend
