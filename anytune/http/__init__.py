"""What every HTTP server of anytune shares: who may ask (guard), addresses and certificates, how it starts and ends.
Nothing here knows what is served."""
