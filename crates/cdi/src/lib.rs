//! Container Device Interface: devices by name, from the specifications of their vendors.
