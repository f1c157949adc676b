// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

// LeaseName is the Lease that the leading controller holds.
const LeaseName = "vk-firkin-controller"

// RunOptions say how the controller runs beside what it decides.
type RunOptions struct {
	Options
	// Config reaches the API server.
	Config *rest.Config
	// LeaderElection lets several run, of which one works.
	LeaderElection bool
	// LeaderElectionNamespace is where the Lease is.
	LeaderElectionNamespace string
	// LeaseDuration after which another takes over. 0 is 15 seconds.
	LeaseDuration time.Duration
	// HealthAddress serves /healthz and /readyz, MetricsAddress /metrics, in plain HTTP. "0" is nowhere.
	HealthAddress, MetricsAddress string
	// Certificates says which certificates of nodes are approved; nil leaves all to others.
	Certificates *approver.Policy
}

// Run runs the controller until ctx ends, or the lease is lost: then it returns an error,
// and the process should end. It blocks.
func Run(ctx context.Context, o RunOptions) error {
	o.Options = o.complete()
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	log := logr.FromSlogHandler(o.Logger.Handler())
	ctrllog.SetLogger(log) // what has no logger of its own logs here, instead of complaining
	options := manager.Options{
		Scheme: scheme, Logger: log,
		Cache:          cache.Options{DefaultTransform: cache.TransformStripManagedFields()},
		LeaderElection: o.LeaderElection, LeaderElectionID: LeaseName, LeaderElectionNamespace: o.LeaderElectionNamespace,
		LeaderElectionReleaseOnCancel: true, // the process ends right after
		HealthProbeBindAddress:        o.HealthAddress,
		Metrics:                       metricsserver.Options{BindAddress: o.MetricsAddress},
		// Two controllers in one process are for tests.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	}
	if o.LeaseDuration > 0 {
		options.LeaseDuration, options.RenewDeadline, options.RetryPeriod = &o.LeaseDuration, ptr.To(o.LeaseDuration*2/3), ptr.To(o.LeaseDuration/6)
	}
	m, err := manager.New(o.Config, options)
	if err != nil {
		return fmt.Errorf("set up controller: %w", err)
	}
	events, stop, err := newRecorder(ctx, o.Config, m)
	if err != nil {
		return err
	}
	defer stop()
	metrics, err := NewMetrics(ctrlmetrics.Registry)
	if err != nil {
		return fmt.Errorf("register metrics: %w", err)
	}
	defer metrics.unregister(ctrlmetrics.Registry)
	r := NewReconciler(&kube{cached: m.GetClient(), live: m.GetAPIReader(), events: events}, o.Options, metrics)
	if err := watch(m, &loop{reconciler: r, log: o.Logger}); err != nil {
		return fmt.Errorf("set up watches: %w", err)
	}
	if o.Certificates != nil {
		if err := approver.Add(m, approver.Options{Policy: *o.Certificates, Namespace: o.LeaderElectionNamespace, Events: events, Logger: o.Logger}); err != nil {
			return fmt.Errorf("set up approval of certificates: %w", err)
		}
	}
	for name, add := range map[string]func(string, healthz.Checker) error{"healthz": m.AddHealthzCheck, "readyz": m.AddReadyzCheck} {
		if err := add(name, healthz.Ping); err != nil {
			return err
		}
	}
	return m.Start(ctx)
}

// newRecorder records events with client-go's own correlation: the events of one object and
// reason that differ in their message stay apart.
func newRecorder(ctx context.Context, c *rest.Config, m manager.Manager) (record.EventRecorder, func(), error) {
	clients, err := kubernetes.NewForConfigAndClient(c, m.GetHTTPClient())
	if err != nil {
		return nil, nil, err
	}
	broadcaster := record.NewBroadcaster(record.WithContext(context.WithoutCancel(ctx)))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: clients.CoreV1().Events("")})
	return broadcaster.NewRecorder(m.GetScheme(), corev1.EventSource{Component: LeaseName}), broadcaster.Shutdown, nil
}

// watch makes every change of what decisions look at one and the same request: a pass
// looks at everything.
func watch(m manager.Manager, r reconcile.Reconciler) error {
	everything := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request {
		return []reconcile.Request{{}}
	})
	nodes := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		old, ok := e.ObjectOld.(*corev1.Node)
		now, also := e.ObjectNew.(*corev1.Node)
		return !ok || !also || relevant(old, now)
	}}
	return builder.ControllerManagedBy(m).Named("warmpool").
		Watches(&v1alpha1.WarmPool{}, everything).
		Watches(&v1alpha1.SnapshotTemplate{}, everything).
		Watches(&v1alpha1.NodeLedger{}, everything).
		Watches(&corev1.Node{}, everything, builder.WithPredicates(nodes)).
		Watches(&nodev1.RuntimeClass{}, everything).
		Complete(r)
}

const (
	// passPeriod is the least time between the starts of two passes: what changes
	// meanwhile is dealt with in one.
	passPeriod = 500 * time.Millisecond
	// errorDelay is how soon a pass that could not write something is tried again.
	errorDelay = 2 * time.Second
)

// loop paces passes.
type loop struct {
	reconciler *Reconciler
	log        *slog.Logger
	last       time.Time
}

// Reconcile makes a pass, unless the last one was just now.
func (l *loop) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	if wait := passPeriod - time.Since(l.last); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	l.last = time.Now()
	next, err := l.reconciler.Pass(ctx)
	if err != nil && ctx.Err() == nil {
		l.log.Error("Pass was not complete; trying again", "error", err, "delay", errorDelay)
		next = errorDelay
	}
	return reconcile.Result{RequeueAfter: next}, nil
}
