// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/vk-firkin/vk-firkin/warmpool/controller"
	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

func newControllerCommand() *cobra.Command {
	var o controllerOptions
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Spread warm pools over the nodes of a Kubernetes cluster",
		Long: `Spreads the WarmPools of a cluster over its nodes, until it is told to stop: it writes
into each node's NodeLedger how many machines of which template the node keeps ready,
makes the RuntimeClass of each SnapshotTemplate, and keeps the statuses of both. It
approves the certificates of nodes that join, and those of their kubelet APIs.

Several may run: one works, the others wait for its lease. Nodes keep what they were
told while none runs. The cluster must know the resources: apply crds/ first.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := o.complete()
			if err != nil {
				return err
			}
			return runController(cmd.Context(), o, logger)
		},
	}
	o.addFlags(cmd.Flags())
	cmd.AddCommand(newControllerCheckCommand())
	return cmd
}

// controllerOptions are the flags of `vk-firkin controller`.
type controllerOptions struct {
	logOptions

	Kubeconfig     string
	LeaderElect    bool
	LeaseNamespace string
	LeaseDuration  time.Duration
	HealthAddress  string
	MetricsAddress string
	GracePeriod    time.Duration
	ReturnPeriod   time.Duration
	CrowdedPeriod  time.Duration
	FillLimit      int
	Approve        bool
	JoinGroup      string
	NodeNetworks   []string
	ReservedNames  []string

	policy *approver.Policy
}

func (o *controllerOptions) addFlags(flags *pflag.FlagSet) {
	o.logOptions.addFlags(flags)
	flags.StringVar(&o.Kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "how to reach the cluster (KUBECONFIG); empty in a pod of it")
	flags.BoolVar(&o.LeaderElect, "leader-elect", true, "work only while holding the lease, so that several may run")
	flags.StringVar(&o.LeaseNamespace, "leader-elect-namespace", "kube-system", "namespace of the lease "+controller.LeaseName+", and of the ConfigMap "+approver.JoinedName)
	flags.DurationVar(&o.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long the lease of a controller that vanished keeps the others waiting")
	flags.StringVar(&o.HealthAddress, "health-probe-address", ":8081", "where /healthz and /readyz are served in plain HTTP; empty for nowhere")
	flags.StringVar(&o.MetricsAddress, "metrics-address", "127.0.0.1:8080", "where Prometheus metrics are served in plain HTTP; empty for nowhere")
	flags.DurationVar(&o.GracePeriod, "node-grace-period", 40*time.Second, "how long a node may be not ready before its replicas move")
	flags.DurationVar(&o.ReturnPeriod, "node-return-period", 2*time.Minute, "how long a node that came back has to get its replicas ready before the surge ends")
	flags.DurationVar(&o.CrowdedPeriod, "node-crowded-period", 30*time.Second, "how long pods may hold the room of replicas before these move to other nodes")
	flags.IntVar(&o.FillLimit, "node-fill-limit", 32, "how many replicas a node is told to restore at a time")
	flags.BoolVar(&o.Approve, "approve-certificates", true, "approve the certificates that vk-firkin's nodes ask for, each for its own name and addresses")
	flags.StringVar(&o.JoinGroup, "join-group", approver.DefaultJoinGroup, "group of the bootstrap tokens that nodes join with: a first certificate is approved for a name that no Node has")
	flags.StringSliceVar(&o.ReservedNames, "reserved-names", nil, "DNS names that no node may be called: those by which clients reach the API server from outside, and others that the cluster's authority vouches for")
	flags.StringSliceVar(&o.NodeNetworks, "node-networks", nil, "networks in which nodes may have addresses, such as 192.0.2.0/24: serving certificates are approved for no others (default: any)")
}

// complete checks every option and reports all faults at once.
func (o *controllerOptions) complete() (*slog.Logger, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	logger, err := o.logOptions.logger(os.Stderr)
	if err != nil {
		errs = append(errs, err)
	}
	if problems := validation.IsDNS1123Label(o.LeaseNamespace); (o.LeaderElect || o.Approve) && len(problems) > 0 {
		fault("--leader-elect-namespace %q: %s", o.LeaseNamespace, strings.Join(problems, ", "))
	}
	if o.LeaseDuration < 3*time.Second {
		fault("--leader-elect-lease-duration %s: want at least 3s", o.LeaseDuration)
	}
	for flag, address := range map[string]*string{"--health-probe-address": &o.HealthAddress, "--metrics-address": &o.MetricsAddress} {
		if *address == "" {
			*address = "0" // controller-runtime's word for nowhere
		} else if _, _, err := net.SplitHostPort(*address); err != nil {
			fault("%s %q: want an address and a port, such as 127.0.0.1:8080", flag, *address)
		}
	}
	for flag, period := range map[string]time.Duration{"--node-grace-period": o.GracePeriod, "--node-return-period": o.ReturnPeriod, "--node-crowded-period": o.CrowdedPeriod} {
		if period <= 0 {
			fault("%s %s: want more than nothing", flag, period)
		}
	}
	if o.FillLimit < 1 {
		fault("--node-fill-limit %d: want at least 1", o.FillLimit)
	}
	o.policy, err = o.certificates()
	if err != nil {
		errs = append(errs, err)
	}
	return logger, errors.Join(errs...)
}

// bootstrapGroups begins the groups that a bootstrap token may have.
const bootstrapGroups = "system:bootstrappers:"

// certificates is what the controller approves; nil: nothing.
func (o *controllerOptions) certificates() (*approver.Policy, error) {
	if !o.Approve {
		return nil, nil
	}
	if !strings.HasPrefix(o.JoinGroup, bootstrapGroups) {
		return nil, fmt.Errorf("--join-group %q: want a group of bootstrap tokens, which begins with %q", o.JoinGroup, bootstrapGroups)
	}
	p := &approver.Policy{JoinGroup: o.JoinGroup, ReservedNames: o.ReservedNames}
	for _, text := range o.NodeNetworks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("--node-networks %q: want a network such as 192.0.2.0/24", text)
		}
		p.Networks = append(p.Networks, network.Masked())
	}
	return p, nil
}

// runController runs the controller until ctx ends or its lease is lost.
func runController(ctx context.Context, o controllerOptions, logger *slog.Logger) error {
	klog.SetSlogLogger(logger.With("component", "kubernetes"))
	config, err := controllerConfig(o.Kubeconfig)
	if err != nil {
		return err
	}
	// A pass over a changed fleet writes an object for each node.
	config.QPS, config.Burst = 100, 300
	config.UserAgent = rest.DefaultKubernetesUserAgent() + " vk-firkin-controller/" + version
	if o.policy != nil { // as this process reaches it; the cluster itself names others
		o.policy.Reserve(config.Host)
	}
	err = controller.Run(ctx, controller.RunOptions{
		Options: controller.Options{
			GracePeriod: o.GracePeriod, ReturnPeriod: o.ReturnPeriod, CrowdedPeriod: o.CrowdedPeriod, FillLimit: o.FillLimit,
			Logger: logger.With("component", "controller"),
		},
		Config: config, LeaderElection: o.LeaderElect, LeaderElectionNamespace: o.LeaseNamespace, LeaseDuration: o.LeaseDuration,
		HealthAddress: o.HealthAddress, MetricsAddress: o.MetricsAddress, Certificates: o.policy,
	})
	if err != nil {
		return err
	}
	logger.Info("Stopped; nodes keep what they were told")
	return nil
}

// controllerConfig reads the kubeconfig, or what a pod is given.
func controllerConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("--kubeconfig is missing, and this is not a pod of a cluster: %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig: %w", err)
	}
	return config, nil
}
