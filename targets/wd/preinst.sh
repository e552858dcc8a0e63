#!/bin/sh
# Nothing has to be there before.
exit 0
