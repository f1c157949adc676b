// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/pressure"
	"github.com/vk-firkin/vk-firkin/vm"
)

// nodeOptions are the flags of `vk-firkin node`.
type nodeOptions struct {
	directories
	logOptions
	logFileOptions

	// isService: it is for one, which has not the environment of who asks for it.
	isService bool

	Kubeconfig     string
	Bootstrap      string
	NodeName       string
	NodeIP         string
	KubeletAddress string
	KubeletPort    int
	TLSCert        string
	TLSKey         string
	ClientCA       string
	SelfSigned     bool
	MetricsAddress string

	GuestKit    string
	Driver      string
	Accelerator string
	Shapes      []string
	Prepare     []string

	InsecureRegistries []string
	NoTaint            bool
	NodeLabels         map[string]string
	MaxPods            int
	ReservedMemory     string
	MinFreeDisk        string

	Refills           int
	RefillMinFreeDisk string
	MaxPending        int
	PendingTimeout    time.Duration

	StuckTimeout       time.Duration
	VolumeRefresh      time.Duration
	ReconcileEvery     time.Duration
	HostPaths          []string
	ClusterDNS         []string
	ClusterDomain      string
	PressureTransition time.Duration
	EvictionHard       string
	EvictionSoft       string
	EvictionSoftGrace  map[string]string
	EvictionMaxGrace   int
	DrainOnShutdown    bool
	ShutdownGrace      time.Duration
	ShutdownCritical   time.Duration

	GCGrace    time.Duration
	ScrubEvery time.Duration
	ScrubRate  string
}

// directories are where a node keeps its files; see docs/architecture.md.
type directories struct {
	StateDir string
	CacheDir string
}

// addFlags binds the flags; the defaults come from the environment, then from the service
// of this host, then from the home folder, never from the temporary one.
func (d *directories) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&d.StateDir, "state-dir", defaultDirectory("FIRKIN_STATE_DIR", "state"), "where machines, snapshots and pods are kept (FIRKIN_STATE_DIR)")
	flags.StringVar(&d.CacheDir, "cache-dir", defaultDirectory("FIRKIN_CACHE_DIR", "cache"), "where images are kept (FIRKIN_CACHE_DIR)")
}

func defaultDirectory(variable, name string) string {
	if dir := os.Getenv(variable); dir != "" {
		return dir
	}
	if s, ok := serviceSpec(); ok {
		if dir := s.Argument(name + "-dir"); dir != "" {
			return dir
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // validate says what to do
	}
	return filepath.Join(home, ".firkin", name)
}

func (d *directories) validate() error {
	var errs []error
	for _, dir := range []struct {
		flag, variable string
		path           *string
	}{{"--state-dir", "FIRKIN_STATE_DIR", &d.StateDir}, {"--cache-dir", "FIRKIN_CACHE_DIR", &d.CacheDir}} {
		if *dir.path == "" {
			errs = append(errs, fmt.Errorf("%s is not set and there is no home folder: give it, or set %s", dir.flag, dir.variable))
			continue
		}
		abs, err := filepath.Abs(*dir.path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", dir.flag, *dir.path, err))
			continue
		}
		*dir.path = abs
	}
	return errors.Join(errs...)
}

// logOptions say what is logged and how.
type logOptions struct {
	LogLevel  string
	LogFormat string
}

func (l *logOptions) addFlags(flags *pflag.FlagSet) {
	flags.StringVar(&l.LogLevel, "log-level", "info", "debug, info, warn or error")
	flags.StringVar(&l.LogFormat, "log-format", "text", "text or json")
}

func (l *logOptions) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.LogLevel)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", l.LogLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch l.LogFormat {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", l.LogFormat)
}

func (o *nodeOptions) addFlags(flags *pflag.FlagSet) {
	o.directories.addFlags(flags)
	o.logOptions.addFlags(flags)
	o.logFileOptions.addFlags(flags)
	flags.StringVar(&o.Kubeconfig, "kubeconfig", "", "how to reach the cluster, with a node's identity, which is not renewed (default: what vk-firkin join has got, else KUBECONFIG)")
	flags.StringVar(&o.Bootstrap, "bootstrap-kubeconfig", "", "kubeconfig whose user may ask for a certificate as a node: used when this host has none that is good")
	flags.StringVar(&o.NodeName, "node-name", "", "name of the node; the identity must be system:node:NAME (default: the name that it joined as, else the host's)")
	flags.StringVar(&o.NodeIP, "node-ip", "", "address that the API server reaches this host at, where host ports are listened on; with a second one, of the other family, after a comma (default: the host's primary address)")
	flags.StringVar(&o.KubeletAddress, "kubelet-address", "", "address to serve the kubelet API on (default: --node-ip)")
	flags.IntVar(&o.KubeletPort, "kubelet-port", 10250, "port of the kubelet API: logs and exec")
	flags.StringVar(&o.TLSCert, "tls-cert-file", "", "serving certificate of the kubelet API (default: one that the cluster issues, when its request is approved)")
	flags.StringVar(&o.TLSKey, "tls-private-key-file", "", "its key")
	flags.BoolVar(&o.SelfSigned, "self-signed-serving-certificate", false, "serve the kubelet API with a certificate that this node signs itself: for clusters that issue none, and whose API server does not verify those of nodes")
	flags.StringVar(&o.ClientCA, "client-ca-file", "", "authority of the API server's client certificate (default: the cluster's, as the kubeconfig has it)")
	flags.StringVar(&o.MetricsAddress, "metrics-address", "127.0.0.1:10255", "where Prometheus metrics are served in plain HTTP; loopback only, empty for nowhere")
	flags.StringVar(&o.GuestKit, "guest-kit", defaultGuestKit(), "folder of the guest kit, built by make guest")
	flags.StringVar(&o.Driver, "driver", defaultDriver(), "hypervisor: vz (Virtualization.framework, on a Mac) or qemu")
	flags.StringVar(&o.Accelerator, "accelerator", "", "how QEMU runs guests: kvm, tcg, or empty for the best that boots the guest kit here")
	flags.StringSliceVar(&o.Shapes, "shapes", nil, "sizes that machines may have, as VCPUSxMEMORY: 1x256Mi,2x1Gi (default: a ladder up to what the host has)")
	flags.StringSliceVar(&o.Prepare, "prepare", nil, "shapes whose base snapshots are built at start (default: the smallest; \"none\" for none)")
	flags.StringSliceVar(&o.InsecureRegistries, "insecure-registry", nil, "registry to speak plain HTTP to, as host:port; for tests")
	flags.BoolVar(&o.NoTaint, "no-taint", false, "do not taint the node with firkin.dev/machine=true:NoSchedule")
	flags.StringToStringVar(&o.NodeLabels, "node-labels", nil, "labels of the node, as key=value: of those in the kubernetes.io namespaces only what a node may set on itself")
	flags.IntVar(&o.MaxPods, "max-pods", 0, "how many pods the node takes (default: what fits into memory at the smallest shape, at most 110)")
	flags.StringVar(&o.ReservedMemory, "reserved-memory", "1Gi", "memory kept from machines, for the host and vk-firkin")
	flags.StringVar(&o.MinFreeDisk, "min-free-disk", "10Gi", "disk that must stay free to build or restore")
	flags.IntVar(&o.Refills, "refills", 0, "how many warm machines are restored at once, beside those that pods wait for (default: half the processors)")
	flags.StringVar(&o.RefillMinFreeDisk, "refill-min-free-disk", "20Gi", "disk that must stay free to fill warm pools; no less than --min-free-disk")
	flags.IntVar(&o.MaxPending, "max-pending", 64, "how many pods wait for room on the node, in order, before further ones are refused for now; 0 for none")
	flags.DurationVar(&o.StuckTimeout, "machine-stuck-timeout", provider.DefaultStuckTimeout, "how long a pod's machine may not answer until it is ended and the pod fails or restarts; time that this host sleeps does not count")
	flags.DurationVar(&o.VolumeRefresh, "volume-refresh", time.Minute, "how often ConfigMaps, Secrets and tokens in volumes are read again, up to half as much later")
	flags.DurationVar(&o.ReconcileEvery, "reconcile-interval", 3*time.Minute, "how often machines are looked for that belong to no pod, up to an eighth sooner or later")
	flags.StringSliceVar(&o.HostPaths, "allow-host-path", nil, "directories of this host, as absolute paths, that hostPath volumes may name: the machine gets a copy (default: none)")
	flags.DurationVar(&o.PendingTimeout, "pending-timeout", 30*time.Second, "how long a pod waits for room before it is refused for now, and tries again")
	flags.StringSliceVar(&o.ClusterDNS, "cluster-dns", nil, "addresses of the cluster's name servers, which must be reachable from this host (default: none, pods resolve as this host does)")
	flags.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "domain of the cluster, for pods' names and searches")
	flags.DurationVar(&o.PressureTransition, "eviction-pressure-transition-period", 5*time.Minute, "how long a pressure must be over until the node says so")
	flags.DurationVar(&o.GCGrace, "gc-grace", 36*time.Hour, "how long an image, a snapshot or anything else must have been unused to be collected: what runs every night stays; less when the disk is short")
	flags.DurationVar(&o.ScrubEvery, "scrub-every", 7*24*time.Hour, "how often all files of a snapshot are read in the background and compared with what was saved; 0 for never")
	flags.StringVar(&o.ScrubRate, "scrub-rate", "32Mi", "how many bytes per second that reads at most: a few percent of what a solid-state disk gives, and a hundred gigabytes in an hour")
	flags.StringVar(&o.EvictionHard, "eviction-hard", "memory.available<100Mi,nodefs.available<1Gi", "thresholds below which running pods are ended, one by one; nodefs is where the state folder is; no more than --min-free-disk unless given; empty for none")
	flags.StringVar(&o.EvictionSoft, "eviction-soft", "", "thresholds below which running pods are ended after a grace period, such as memory.available<1Gi")
	flags.StringToStringVar(&o.EvictionSoftGrace, "eviction-soft-grace-period", nil, "how long each soft threshold may be passed, such as memory.available=1m30s")
	flags.IntVar(&o.EvictionMaxGrace, "eviction-max-pod-grace-period", 0, "seconds that pods have at most to end at a soft threshold")
	flags.BoolVar(&o.DrainOnShutdown, "drain-on-shutdown", false, "end all pods when told to stop, by priority (default: their machines go on)")
	flags.DurationVar(&o.ShutdownGrace, "shutdown-grace-period", 30*time.Second, "with --drain-on-shutdown: how long all pods have together to end")
	flags.DurationVar(&o.ShutdownCritical, "shutdown-grace-period-critical-pods", 10*time.Second, "the last part of --shutdown-grace-period, for critical pods alone")
}

// defaultGuestKit is where make guest puts the kit of this host's guests.
func defaultGuestKit() string { return filepath.Join("bin", "guest", runtime.GOARCH) }

// nodeSettings are options that were understood.
type nodeSettings struct {
	nodeOptions
	logger         *slog.Logger
	logMaxBytes    int64
	joined         bool       // or about to: the identity is in the state folder
	ladder         []vm.Shape // empty: the default one
	prepare        []vm.Shape
	prepareNone    bool
	reservedMemory int64
	minFreeDisk    int64

	refillMinFreeDisk int64
	scrubRate         int64

	hard, soft map[string]pressure.Amount
	softGrace  map[string]time.Duration
}

// complete checks every option and reports all faults at once.
func (o nodeOptions) complete() (*nodeSettings, error) {
	s := &nodeSettings{nodeOptions: o}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	note := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}

	note(s.directories.validate())
	var err error
	s.logger, err = s.logOptions.logger(os.Stderr)
	note(err)
	s.logMaxBytes, err = s.logFileOptions.validate()
	note(err)
	s.completeIdentity(fault)
	note(checkNodeIP(o.NodeIP))
	for _, server := range o.ClusterDNS {
		if net.ParseIP(server) == nil {
			fault("--cluster-dns %q is not an address", server)
		}
	}
	if problems := validation.IsDNS1123Subdomain(o.ClusterDomain); o.ClusterDomain != "" && len(problems) > 0 {
		fault("--cluster-domain %q: %s", o.ClusterDomain, strings.Join(problems, ", "))
	}
	for _, key := range slices.Sorted(maps.Keys(o.NodeLabels)) {
		note(checkNodeLabel(key, o.NodeLabels[key]))
	}
	if o.PressureTransition < 0 {
		fault("--eviction-pressure-transition-period %s: want 0 or more", o.PressureTransition)
	}
	s.completeEviction(note, fault)
	if o.ShutdownCritical < 0 || o.ShutdownGrace < o.ShutdownCritical || o.ShutdownGrace > maxShutdownGrace {
		fault("--shutdown-grace-period %s with %s for critical pods: want at most %s, and no less than the latter", o.ShutdownGrace, o.ShutdownCritical, maxShutdownGrace)
	}
	note(checkDriver(o.Driver))
	if o.KubeletPort < 1 || o.KubeletPort > 65535 {
		fault("--kubelet-port %d: want 1 to 65535", o.KubeletPort)
	}
	if o.MetricsAddress != "" {
		host, _, err := net.SplitHostPort(o.MetricsAddress)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			fault("--metrics-address %q: want a loopback address and a port, it is not encrypted", o.MetricsAddress)
		}
	}
	s.ladder, err = parseShapes(o.Shapes)
	note(err)
	if len(o.Prepare) == 1 && o.Prepare[0] == "none" {
		s.prepareNone = true
	} else {
		s.prepare, err = parseShapes(o.Prepare)
		note(err)
	}
	if o.MaxPods < 0 || o.MaxPods > 1000 {
		fault("--max-pods %d: want 1 to 1000, or 0 for the default", o.MaxPods)
	}
	s.reservedMemory, err = parseBytes("--reserved-memory", o.ReservedMemory)
	note(err)
	s.minFreeDisk, err = parseBytes("--min-free-disk", o.MinFreeDisk)
	note(err)
	s.refillMinFreeDisk, err = parseBytes("--refill-min-free-disk", o.RefillMinFreeDisk)
	note(err)
	s.refillMinFreeDisk = max(s.refillMinFreeDisk, s.minFreeDisk) // or pools would take what pods need
	s.scrubRate, err = parseBytes("--scrub-rate", o.ScrubRate)
	note(err)
	if err == nil && s.scrubRate < 1<<20 && o.ScrubEvery > 0 {
		fault("--scrub-rate %s: want at least 1Mi; --scrub-every 0 is for never", o.ScrubRate)
	}
	if o.ScrubEvery < 0 || o.ScrubEvery > 0 && o.ScrubEvery < time.Second {
		fault("--scrub-every %s: want at least 1s, or 0 for never", o.ScrubEvery)
	}
	if o.GCGrace < 0 {
		fault("--gc-grace %s: want 0 or more", o.GCGrace)
	}
	if o.Refills < 0 || o.Refills > 64 {
		fault("--refills %d: want 1 to 64, or 0 for the default", o.Refills)
	}
	if o.MaxPending < 0 || o.MaxPending > 10000 {
		fault("--max-pending %d: want 0 to 10000", o.MaxPending)
	}
	if o.StuckTimeout < 5*time.Second || o.StuckTimeout > time.Hour {
		fault("--machine-stuck-timeout %s: want 5s to 1h", o.StuckTimeout)
	}
	if o.VolumeRefresh < time.Second || o.VolumeRefresh > time.Hour {
		fault("--volume-refresh %s: want 1s to 1h", o.VolumeRefresh)
	}
	if o.ReconcileEvery < 10*time.Second || o.ReconcileEvery > time.Hour {
		fault("--reconcile-interval %s: want 10s to 1h", o.ReconcileEvery)
	}
	for _, path := range o.HostPaths {
		if !filepath.IsAbs(path) {
			fault("--allow-host-path %q: want an absolute path", path)
		}
	}
	if o.PendingTimeout <= 0 || o.PendingTimeout > time.Hour {
		fault("--pending-timeout %s: want more than 0 and at most 1h", o.PendingTimeout)
	}
	return s, errors.Join(errs...)
}

// maxShutdownGrace bounds how long a host may be kept from its shutdown.
const maxShutdownGrace = time.Hour

// checkNodeIP wants one address, or two of different families.
func checkNodeIP(text string) error {
	if text == "" {
		return nil
	}
	families := map[bool]bool{}
	for part := range strings.SplitSeq(text, ",") {
		ip := net.ParseIP(part)
		if ip == nil {
			return fmt.Errorf("--node-ip %q is not an address", part)
		}
		four := ip.To4() != nil
		if families[four] {
			return fmt.Errorf("--node-ip %q: want one address, or one of each family", text)
		}
		families[four] = true
	}
	return nil
}

// checkNodeLabel refuses what the API server would: NodeRestriction lets a node set few
// labels of Kubernetes' own namespaces on itself.
func checkNodeLabel(key, value string) error {
	problems := append(content.IsLabelKey(key), content.IsLabelValue(value)...)
	if len(problems) > 0 {
		return fmt.Errorf("--node-labels %s=%s: %s", key, value, strings.Join(problems, ", "))
	}
	namespace, _, ok := strings.Cut(key, "/")
	within := func(domain string) bool { return namespace == domain || strings.HasSuffix(namespace, "."+domain) }
	if !ok || !within("kubernetes.io") && !within("k8s.io") {
		return nil
	}
	switch key {
	case corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelInstanceTypeStable,
		corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion, corev1.LabelInstanceType:
		return nil
	}
	if within("kubelet.kubernetes.io") || within("node.kubernetes.io") {
		return nil
	}
	return fmt.Errorf("--node-labels %s: a node may not set this label on itself", key)
}

func parseBytes(flag, text string) (int64, error) {
	q, err := resource.ParseQuantity(text)
	if err != nil || q.Sign() < 0 {
		return 0, fmt.Errorf("%s %q: want a size such as 10Gi", flag, text)
	}
	return q.Value(), nil
}

// parseShapes reads shapes as people write them: 2x1Gi.
func parseShapes(texts []string) ([]vm.Shape, error) {
	var shapes []vm.Shape
	var errs []error
	for _, text := range texts {
		cpus, memory, ok := strings.Cut(text, "x")
		n, err := strconv.Atoi(cpus)
		q, qerr := resource.ParseQuantity(memory)
		if !ok || err != nil || qerr != nil {
			errs = append(errs, fmt.Errorf("shape %q: want VCPUSxMEMORY, for example 2x1Gi", text))
			continue
		}
		shape := vm.Shape{VCPUs: n, MemoryBytes: q.Value()}
		if err := shape.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("shape %q: %w", text, err))
			continue
		}
		shapes = append(shapes, shape)
	}
	return shapes, errors.Join(errs...)
}
