//go:build !unix

package boltbroker

import "syscall"

// errQuota stands for a full disk: there is no other error for quotas.
const errQuota = syscall.ENOSPC
