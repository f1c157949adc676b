// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool/controller"
	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

// checkAskTimeout bounds each question of the check to the API server.
const checkAskTimeout = 10 * time.Second

// newControllerCheckCommand is what `helm test` runs, with the controller's own account.
func newControllerCheckCommand() *cobra.Command {
	var kubeconfig, namespace string
	var approves bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Tell whether a controller works in this cluster",
		Long: `Asks the API server, with the rights of whoever runs it, for the resources of vk-firkin,
for the controller's lease, and, where it approves certificates, for who has joined. It
waits for what may still be coming up, for --timeout, and fails with what is missing then.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := controllerConfig(kubeconfig)
			if err != nil {
				return err
			}
			config.Timeout = checkAskTimeout
			scheme := runtime.NewScheme()
			if err := errors.Join(v1alpha1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
				return err
			}
			c, err := client.New(config, client.Options{Scheme: scheme})
			if err != nil {
				return fmt.Errorf("reach the cluster: %w", err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return waitForController(ctx, c, namespace, approves, cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "how to reach the cluster (KUBECONFIG); empty in a pod of it")
	flags.StringVar(&namespace, "leader-elect-namespace", "kube-system", "namespace of the lease "+controller.LeaseName+", and of the ConfigMap "+approver.JoinedName)
	flags.BoolVar(&approves, "approve-certificates", true, "as the controller has it: then it must be allowed to read who has joined")
	flags.DurationVar(&timeout, "timeout", time.Minute, "how long to wait for what is missing")
	return cmd
}

// waitForController returns when all is there; when ctx ends, with what was missing last.
func waitForController(ctx context.Context, c client.Reader, namespace string, approves bool, out io.Writer) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var missing error
	for {
		holder, err := lookAtController(ctx, c, namespace, approves, time.Now())
		if err == nil {
			_, err := fmt.Fprintf(out, "The resources are served, and %s is at work.\n", holder)
			return err
		}
		if ctx.Err() == nil || missing == nil { // what the end of ctx cut off says nothing
			missing = err
		}
		select {
		case <-ctx.Done():
			return missing
		case <-tick.C:
		}
	}
}

// lookAtController returns who holds the lease, or what is missing.
func lookAtController(ctx context.Context, c client.Reader, namespace string, approves bool, now time.Time) (string, error) {
	var errs []error
	for _, list := range []client.ObjectList{&v1alpha1.WarmPoolList{}, &v1alpha1.SnapshotTemplateList{}, &v1alpha1.NodeLedgerList{}} {
		if err := c.List(ctx, list, client.Limit(1)); err != nil {
			errs = append(errs, fmt.Errorf("list %T: %w: install the chart with crds.enabled, and let this account read them", list, err))
		}
	}
	var lease coordinationv1.Lease
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: controller.LeaseName}, &lease); err != nil {
		errs = append(errs, fmt.Errorf("read the controller's lease: %w: none has been at work in this namespace yet, see the logs of its pods", err))
	} else if fault := leaseFault(&lease, now); fault != nil {
		errs = append(errs, fault)
	}
	if approves {
		err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: approver.JoinedName}, &corev1.ConfigMap{})
		if client.IgnoreNotFound(err) != nil { // there is none before the first node, where the controller may make it
			errs = append(errs, fmt.Errorf("read who joined: %w", approver.ExplainJoined(err, namespace)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return "", err
	}
	return *lease.Spec.HolderIdentity, nil
}

// leaseFault says why nobody works by this lease; nil when somebody does. Pure.
func leaseFault(lease *coordinationv1.Lease, now time.Time) error {
	s := lease.Spec
	if s.HolderIdentity == nil || *s.HolderIdentity == "" {
		return fmt.Errorf("nobody holds the lease %s/%s: no controller is at work, see the logs of its pods", lease.Namespace, lease.Name)
	}
	var seconds int32
	if s.LeaseDurationSeconds != nil {
		seconds = *s.LeaseDurationSeconds
	}
	renewed := metav1.MicroTime{}
	if s.RenewTime != nil {
		renewed = *s.RenewTime
	}
	if age := now.Sub(renewed.Time); age > time.Duration(seconds)*time.Second {
		return fmt.Errorf("%s has not renewed the lease %s/%s since %s, which is longer than its %d s: no controller is at work, see the logs of its pods",
			*s.HolderIdentity, lease.Namespace, lease.Name, renewed.UTC().Format(time.RFC3339), seconds)
	}
	return nil
}
