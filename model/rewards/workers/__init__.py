"""The processes in which checks and reward models run, so that they can be killed and started anew."""
