// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package seccomp

import "strings"

// Default is the profile of a container that asks for the runtime's own (RuntimeDefault):
// what ordinary programs call is allowed, what changes the machine needs the capability for
// it, anything else fails with EPERM. The effect is meant to be that of containerd's and
// Docker's defaults, so that what runs there runs here.
//
// What is left out on purpose, as there: the kernel's keyring (which no namespace
// separates), loading and replacing kernels, swap, NFS's server, what user namespaces
// open up (clone with namespaces, unshare, setns), userfaultfd, io_uring, and sockets of
// AF_ALG, the kernel's cryptography, and of AF_VSOCK, which lead to the host. What 32-bit
// programs make by socketcall lies in memory, where no filter looks.
func Default() *Profile {
	eperm, enosys := uint(1), uint(38)
	p := &Profile{
		DefaultAction: "SCMP_ACT_ERRNO", DefaultErrnoRet: &eperm,
		ArchMap: []Arch{
			{Architecture: "SCMP_ARCH_X86_64", SubArchitectures: []string{"SCMP_ARCH_X86", "SCMP_ARCH_X32"}},
			{Architecture: "SCMP_ARCH_AARCH64", SubArchitectures: []string{"SCMP_ARCH_ARM"}},
		},
	}
	allow := func(r Rule) {
		r.Action = "SCMP_ACT_ALLOW"
		p.Syscalls = append(p.Syscalls, r)
	}
	for _, group := range ordinaryCalls {
		allow(Rule{Names: strings.Fields(group)})
	}
	for _, c := range archCalls {
		allow(Rule{Names: strings.Fields(c.calls), Includes: Condition{Arches: []string{c.arch}}})
	}
	for _, c := range capabilityCalls {
		allow(Rule{Names: strings.Fields(c.calls), Includes: Condition{Caps: []string{c.capability}}})
	}
	// Since Linux 4.8 a tracer cannot get its tracee past a filter any more.
	allow(Rule{Names: []string{"process_vm_readv", "process_vm_writev", "ptrace"}, Includes: Condition{MinKernel: "4.8"}})
	// PER_LINUX, PER_LINUX32, with and without UNAME26, and the question what it is.
	for _, persona := range []uint64{0x0, 0x8, 0x20000, 0x20008, 0xffffffff} {
		allow(Rule{Names: []string{"personality"}, Args: []Arg{{Index: 0, Value: persona, Op: "SCMP_CMP_EQ"}}})
	}
	// The families below AF_ALG, AF_NFC, and those from AF_KCM to AF_MCTP, the last that there is.
	// Not "all but these two": a filter compares 64 bits, of which the kernel takes 32, and
	// AF_VSOCK with another bit set is AF_VSOCK.
	allow(Rule{Names: []string{"socket"}, Args: []Arg{{Index: 0, Value: afAlg, Op: "SCMP_CMP_LT"}}})
	for _, family := range []uint64{39, 41, 42, 43, 44, 45} {
		allow(Rule{Names: []string{"socket"}, Args: []Arg{{Index: 0, Value: family, Op: "SCMP_CMP_EQ"}}})
	}
	// Without CAP_SYS_ADMIN no clone makes namespaces. What clone3 would make lies in memory,
	// where no filter looks: programs that are told it does not exist use clone.
	plain := Condition{Caps: []string{"CAP_SYS_ADMIN"}}
	allow(Rule{Names: []string{"clone"}, Args: []Arg{{Index: 0, Value: cloneNamespaces, ValueTwo: 0, Op: "SCMP_CMP_MASKED_EQ"}}, Excludes: plain})
	p.Syscalls = append(p.Syscalls, Rule{Names: []string{"clone3"}, Action: "SCMP_ACT_ERRNO", ErrnoRet: &enosys, Excludes: plain})
	return p
}

const (
	afAlg = 38
	// cloneNamespaces is CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of
	// linux/sched.h.
	cloneNamespaces = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
)

// ordinaryCalls are what programs call without any privilege, or what the kernel itself
// checks privileges for, call by call. Names of 32-bit architectures are among them.
var ordinaryCalls = []string{
	// Files and directories.
	`access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2 fadvise64
	 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync flock fstat
	 fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 ioctl lchown
	 lchown32 link linkat lseek _llseek lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2
	 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv rename renameat renameat2
	 rmdir sendfile sendfile64 splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs tee
	 truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
	 cachestat statmount listmount`,
	// Extended attributes.
	`fgetxattr flistxattr fremovexattr fsetxattr getxattr lgetxattr listxattr llistxattr lremovexattr lsetxattr removexattr
	 setxattr getxattrat listxattrat removexattrat setxattrat`,
	// Waiting for files.
	`epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
	 inotify_add_watch inotify_init inotify_init1 inotify_rm_watch fanotify_mark _newselect poll ppoll ppoll_time64 pselect6
	 pselect6_time64 select signalfd signalfd4 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime
	 timerfd_settime64`,
	// Asynchronous input and output.
	`io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioprio_get ioprio_set`,
	// Memory.
	`brk madvise map_shadow_stack memfd_create memfd_secret mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal msync
	 munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect process_mrelease remap_file_pages membarrier`,
	// Processes and threads.
	`alarm arch_prctl capget capset execve execveat exit exit_group fork futex futex_requeue futex_time64 futex_wait
	 futex_waitv futex_wake get_robust_list get_thread_area getcpu getpgid getpgrp getpid getppid getpriority getrlimit
	 getrusage getsid gettid kill landlock_add_rule landlock_create_ruleset landlock_restrict_self pause pidfd_open
	 pidfd_send_signal prctl prlimit64 restart_syscall rseq sched_get_priority_max sched_get_priority_min sched_getaffinity
	 sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
	 sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area set_tid_address
	 setpgid setpriority setrlimit setsid tgkill tkill ugetrlimit vfork wait4 waitid waitpid uretprobe
	 lsm_get_self_attr lsm_list_modules lsm_set_self_attr`,
	// Users and groups.
	`getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getresgid getresgid32 getresuid getresuid32
	 getuid getuid32 setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32
	 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setuid setuid32`,
	// Signals and time.
	`adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
	 clock_nanosleep_time64 getitimer gettimeofday nanosleep rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo
	 rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo setitimer sigaction sigaltstack
	 sigpending sigprocmask sigreturn sigsuspend time timer_create timer_delete timer_getoverrun timer_gettime
	 timer_gettime64 timer_settime timer_settime64 times`,
	// Sockets, but for the making of one.
	`accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
	 send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair`,
	// Messages, semaphores and memory between processes; pipes.
	`ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
	 msgctl msgget msgrcv msgsnd pipe pipe2 semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget`,
	// The system.
	`getrandom sysinfo uname`,
}

// archCalls exist on some architectures only.
var archCalls = []struct{ arch, calls string }{
	{"amd64", "modify_ldt"},
	{"arm64", "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"},
}

// capabilityCalls are for those who have the capability.
var capabilityCalls = []struct{ capability, calls string }{
	{"CAP_DAC_READ_SEARCH", "open_by_handle_at"},
	{"CAP_SYS_ADMIN", `bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
		open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare`},
	{"CAP_SYS_BOOT", "reboot"},
	{"CAP_SYS_CHROOT", "chroot"},
	{"CAP_SYS_MODULE", "delete_module init_module finit_module"},
	{"CAP_SYS_PACCT", "acct"},
	{"CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"},
	{"CAP_SYS_RAWIO", "iopl ioperm"},
	{"CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"},
	{"CAP_SYS_TTY_CONFIG", "vhangup"},
	{"CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"},
	{"CAP_SYSLOG", "syslog"},
	{"CAP_BPF", "bpf"},
	{"CAP_PERFMON", "perf_event_open"},
}
