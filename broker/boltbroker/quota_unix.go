//go:build unix

package boltbroker

import "syscall"

// errQuota is what a write over a user's quota gives.
const errQuota = syscall.EDQUOT
