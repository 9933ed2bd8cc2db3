//! Exec, attach and port-forward transports: SPDY/3.1 and WebSocket.
